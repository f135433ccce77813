"""How a picture looks in any format: places, colours, and what is around the cells."""
