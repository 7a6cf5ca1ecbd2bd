"""How a set of instructions runs: reading, planning, scheduling, and the Prefect flow."""
