"""The parts of the engine `RabbitMQ`, from the connection up."""
