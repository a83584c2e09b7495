"""The memory of a step: what is kept between forward and backward, counted twice."""
