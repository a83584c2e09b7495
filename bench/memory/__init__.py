"""What adaptation takes in memory, method by method, beside plain inference: `edgetta bench memory`."""
