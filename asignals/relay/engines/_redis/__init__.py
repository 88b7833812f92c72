"""The parts of the engine `RedisStreams`, from the connection up."""
