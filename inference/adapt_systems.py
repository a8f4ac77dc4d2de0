"""Which systems can adapt to a task that they have never seen."""

from config.arch_schema import AnyArch, HybridArch, TrmArch


def refusal(arch: AnyArch) -> str | None:
    """Why a system cannot be adapted to a task's demonstrations; None where it can."""
    if isinstance(arch, TrmArch):
        return "a TRM reads no demonstrations: it cannot be adapted to a new task"
    if isinstance(arch, HybridArch):
        return (
            "a TRM hybrid reads a task as text, by a language model that would have to read every view of it: it "
            "cannot be adapted; an ETRM or ETRMTRM can"
        )
    return None
