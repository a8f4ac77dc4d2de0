"""RE-ARC: a generator of pairs and a verifier for each training task of ARC-AGI-1, from a package installed apart."""
