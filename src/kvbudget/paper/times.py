"""Times beside the full cache's, on one machine: those of two machines stand in no ratio."""

import pandas as pd

from kvbudget.paper.source import Source
from kvbudget.study.plan import FULL

PLACE = ["model", "task", "length", "machine"]


def ratios(src: Source) -> pd.DataFrame:
    """One row a method that evicts, at each place and budget where decoding was timed and the full
    cache was measured on the same machine.

    Columns `decode`, the speed of a step, and `prefill`, the time of reading, are over the full
    cache's.
    """
    frame = src.wide()
    if "decode_ms_per_token" not in frame:
        return pd.DataFrame(columns=[*frame, "decode", "prefill"])
    frame = frame.dropna(subset="decode_ms_per_token")
    full = frame[frame["policy"] == FULL].drop_duplicates(PLACE).set_index(PLACE)
    full = full[["decode_ms_per_token", "prefill_s"]]
    mine = frame[frame["policy"] != FULL].set_index(PLACE)
    joined = mine.join(full, suffixes=("", "_full"), how="inner").reset_index()
    return joined.assign(
        decode=joined["decode_ms_per_token_full"] / joined["decode_ms_per_token"],
        prefill=joined["prefill_s"] / joined["prefill_s_full"],
    )
