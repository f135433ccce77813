"""What a capture will take, from configuration and tokenizer alone: bytes, memory, refusals. `lens plan`."""
