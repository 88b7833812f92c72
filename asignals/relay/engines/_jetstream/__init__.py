"""The parts of the engine `JetStream`, from the connection up."""
