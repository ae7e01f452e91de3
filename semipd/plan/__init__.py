"""The command semipd-plan: what a GPU carries of a load, and how many are needed, by simulation."""
