"""Studies of the gradient's variance and bias under each value of an option."""
