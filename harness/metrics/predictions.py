"""Every prediction as one line of a table, so that people can read where a model errs."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from harness.metric import Metric
from harness.predictions import Classified
from harness.storage import write_text


class PredictionTable(Metric[Classified]):
    """No numbers, one file: predictions.csv, in the order of the split."""

    def write(self, predictions: Classified, folder: Path) -> None:
        """predictions.csv: id, text (pair), label, predicted, correct, confidence, `probability_<label>` each."""
        names = predictions.label_names
        file = io.StringIO(newline="")
        table = csv.writer(file)
        probabilities = [f"probability_{name}" for name in names]
        texts = ["text", "pair"] if any("pair" in row for row in predictions.rows) else ["text"]
        table.writerow(["id", *texts, "label", "predicted", "correct", "confidence", *probabilities])
        for row, label, guess, shares in zip(
            predictions.rows,
            predictions.labels.tolist(),
            predictions.predicted.tolist(),
            predictions.probabilities.tolist(),
            strict=True,
        ):
            correct = "true" if label == guess else "false"
            table.writerow(
                [row["id"], *(row[text] for text in texts), names[label], names[guess], correct, shares[guess], *shares]
            )
        write_text(folder / "predictions.csv", file.getvalue())
