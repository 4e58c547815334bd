"""What is told of every flag: each with a thread, a cursor and a bound of its own."""
