"""The parts of the engine `Database`."""
