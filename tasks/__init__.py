"""What one instruction does: the operations, their contract, and their wrapper as Prefect tasks."""
