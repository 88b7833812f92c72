"""The parts of the engine `Kafka`, from the client up."""
