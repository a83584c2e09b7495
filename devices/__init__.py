"""What edgetta knows of the machine it runs on: `edgetta.devices.doctor` examines it."""
