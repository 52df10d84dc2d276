# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Few-shot learning from beginning to end, in less than a minute and without a download.

The checkpoint inside the package knows drawings by their English names. Two drawings of each of 19 things teach it
what they are called in German, by a context for each name, and a prompt for the unknown (CLIP-OS). Then the sample
pictures of the package, which are in another style, are judged: half of them show none of these things.

    python training/few_shot_example.py --output_dir runs/few-shot-example
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from clipn_hf import DualEncoder, OODDetector
from clipn_hf.demo import SAMPLES
from clipn_hf.evaluation.metrics import auroc
from clipn_hf.heat_maps import draw_explanations
from clipn_hf.training import CLIPOSArguments, CLIPOSTrainer, LabelledImages, load_labelled_images, sample_shots

DRAWINGS = Path(__file__).parent / "few_shot_drawings"
GERMAN = {
    "bison": "Bison",
    "cactus": "Kaktus",
    "cat face": "Katze",
    "falafel": "Falafel",
    "feather": "Feder",
    "fish": "Fisch",
    "floppy disk": "Diskette",
    "hammer": "Hammer",
    "herb": "Kraut",
    "ladder": "Leiter",
    "llama": "Lama",
    "olive": "Olive",
    "pen": "Stift",
    "phoenix": "Phönix",
    "pretzel": "Brezel",
    "rhinoceros": "Nashorn",
    "spider web": "Spinnennetz",
    "spoon": "Löffel",
    "video camera": "Videokamera",
}
SHOTS = 2
NUM_CALIBRATION = 9  # The fewest of which at most 10 % can be promised to be called unknown.


def find_samples() -> tuple[list[Path], list[str], list[Path]]:
    """Find the sample pictures of the package: known ones, what they show, and those of other things."""
    samples = json.loads(Path(SAMPLES, "samples.json").read_text(encoding="utf-8"))["images"]
    known = [sample for sample in samples if sample["name"] in GERMAN]
    return (
        [Path(SAMPLES, sample["file"]) for sample in known],
        [GERMAN[sample["name"]] for sample in known],
        [Path(SAMPLES, sample["file"]) for sample in samples if not sample["known"]],
    )


def measure(detector: OODDetector, known: Sequence[Path], names: Sequence[str], unknown: Sequence[Path]) -> str:
    """Judge pictures; give the accuracy on the known ones, and the AUROC."""
    scores, nearest = detector.score_and_predict(known)
    hits = [detector.labels[position] == name for position, name in zip(nearest.tolist(), names, strict=True)]
    return f"{sum(hits) / len(hits):>9.1%}{auroc(scores, detector.score(unknown)):>9.1%}"


def main(output_dir: str, epochs: int, seed: int) -> None:
    """Train, judge and explain."""
    rows = load_labelled_images([str(DRAWINGS)])
    labels = [GERMAN[name] for name in rows.features["label"].names]
    shots = rows.select(sample_shots(rows["label"], shots=SHOTS, seed=seed, class_names=labels))
    known, names, unknown = find_samples()

    encoder = DualEncoder.from_pretrained(device="cpu")
    # Training changes the model, which is judged as it came before.
    zero_shot = measure(OODDetector(encoder, labels, "mcm"), known, names, unknown)
    args = CLIPOSArguments(
        output_dir=output_dir,
        class_specific=True,
        # A model this small learns more from words, and at a higher rate than the authors'.
        context_init="a drawing of a",
        learning_rate=0.2,
        num_train_epochs=epochs,
        seed=seed,
        use_cpu=True,
        save_strategy="no",
        logging_steps=50,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = CLIPOSTrainer(
        encoder.model, args, processing_class=encoder.processor, labels=labels, train_dataset=LabelledImages(shots)
    )
    trainer.train()
    trainer.save_model()

    # What was learned takes a few KB, and is used like a model.
    detector = OODDetector(output_dir, labels, "clip_os", combination="mcm", device="cpu")
    print(f"\n{'':<24}{'accuracy':>9}{'AUROC':>9}")
    print(f"{'zero-shot, MCM':<24}{zero_shot}")
    print(f"{'CLIP-OS with MCM':<24}{measure(detector, known, names, unknown)}")

    detector.calibrate(known[:NUM_CALIBRATION], max_id_rejection=0.1)
    detector.save_pretrained(output_dir)
    judged = [*known[NUM_CALIBRATION:], *unknown]
    verdicts = [result["is_ood"] for result in detector(judged)]
    num_known = len(known) - NUM_CALIBRATION
    print(
        f"\nBy a threshold that {NUM_CALIBRATION} of the known pictures gave, {verdicts[:num_known].count(False)} of "
        f"the other {num_known} are known,\nand {verdicts[num_known:].count(True)} of the {len(unknown)} unknown ones "
        "are unknown."
    )

    shown = [str(judged[0]), str(judged[-1])]
    trainer.create_model_card(
        finetuned_from="clipn-tiny",
        dataset=DRAWINGS.name,
        num_images=len(shots),
        detector=detector,
        sample_images=shown,
    )
    picture = Path(output_dir) / "explanations.png"
    draw_explanations(detector.explain(shown), [Path(path).name for path in shown]).save(picture)
    print(f"Written to {output_dir}: adapter, detector, card, and {picture.name}, which shows what it looked at.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/few-shot-example", help="Folder to write.")
    parser.add_argument("--epochs", type=int, default=100, help="Passes over the drawings.")
    parser.add_argument("--seed", type=int, default=0, help="Of the draw of shots, and of the training.")
    main(**vars(parser.parse_args()))
