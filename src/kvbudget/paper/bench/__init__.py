"""What `kvbudget bench` measured, in print: it is of a machine, not of a study."""

#: Names of what is compared, in the order of print.
TITLES = {
    "alone": "no context",
    "stock": "transformers, everything",
    "stock-pressed": "transformers, 20% of the tokens (as kvpress leaves them)",
    "quanto-4bit": "transformers, everything in 4 bits (quanto)",
    "full": "everything",
    "full-4bit": "everything in 4 bits",
    "h2o": "H2O, 20%",
    "streaming-llm": "StreamingLLM, 20%",
    "head-aware": "Head-Aware, 20%",
    "head-aware-4bit": "Head-Aware in 4 bits, 20% of the bytes",
}
