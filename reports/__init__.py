"""What people look at: pages, tables and curves of runs, and the wandb mirror."""
