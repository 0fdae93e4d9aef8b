"""Score a folder of images, few-shot: python few_shot_folder.py GOOD_FOLDER FOLDER CLASS_NAME [K_SHOT].

K_SHOT images of GOOD_FOLDER are the normal reference images. The script writes heatmaps to
results/AprilGan/latest/images. It needs no masks, no labels and no training.
"""

import sys

from anomalib.engine import Engine

from anomalib_aprilgan import AprilGan


def main(good: str, folder: str, class_name: str, k_shot: str = "4") -> None:
    """Print the reference images, then one line per image with the most anomalous first."""
    model = AprilGan(class_name=class_name, k_shot=int(k_shot), few_shot_source=good)
    batches = Engine(logger=False).predict(model, data_path=folder)
    print("References:", *model.reference_files, sep="\n  ")
    scores = [(float(batch.pred_score), path) for batch in batches for path in batch.image_path]
    for score, path in sorted(scores, reverse=True):
        print(f"{score:.3f}  {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
