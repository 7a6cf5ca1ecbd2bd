"""What starts a run: the command line and the local Prefect server."""
