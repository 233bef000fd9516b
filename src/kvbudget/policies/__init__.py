"""Methods of keeping tokens, one small module each, and what they share."""
