"""The parts of `law evaluate`: what is asked of which model, what it leaves, how sure it is."""
