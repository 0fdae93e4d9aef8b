"""Score a folder of images, few-shot.

Some images of a folder of normal ones are the references. The script writes heatmaps to results/AprilGan/latest/images.
It needs no masks, no labels and no training.
"""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter


def main(options: Namespace) -> None:
    """Print the reference images, then one line per image with the most anomalous first."""
    from anomalib.engine import Engine

    from anomalib_aprilgan import AprilGan

    clip = {"backbone": options.backbone, "pretrained": options.pretrained, "adapter": options.adapter}
    model = AprilGan(class_name=options.class_name, k_shot=options.k_shot, few_shot_source=options.good, **clip)
    batches = Engine(logger=False).predict(model, data_path=options.folder)
    print("References:", *model.reference_files, sep="\n  ")
    scores = [(float(batch.pred_score), path) for batch in batches for path in batch.image_path]
    for score, path in sorted(scores, reverse=True):
        print(f"{score:.3f}  {path}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("good", help="folder of normal images")
    parser.add_argument("folder", help="folder of the images to score")
    parser.add_argument("class_name", help="name of the object or surface, for instance 'metal nut'")
    parser.add_argument("k_shot", nargs="?", type=int, default=4, help="number of references (default: 4)")
    parser.add_argument("--backbone", help="architecture of open_clip, or ViT-builtin, which needs no download")
    parser.add_argument("--pretrained", default="auto", help="file with CLIP's weights, if there is no network")
    parser.add_argument("--adapter", default="auto", help="file with adapters, if there is no network")
    main(parser.parse_args())
