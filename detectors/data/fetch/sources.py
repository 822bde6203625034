"""Public data sets: where their archives are, which bytes they have, and on whose terms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A data set that can be fetched: where, what exactly, and on whose terms."""

    name: str
    title: str
    url: str | None
    """None where no dependable address is known: the archive has to be at hand."""
    sha256: str
    size_bytes: int
    """Size of the archive, approximately: for the question before the download."""
    extracted_bytes: int
    """Size of the files in it, approximately."""
    categories: tuple[str, ...]
    """Folders that make up the data set; an archive has to hold one of them at least."""
    licence: str
    licence_url: str
    licence_text: str
    """What the licence asks for, in short; the text at `licence_url` is the one that counts."""
    citation: str


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="mvtec",
            title="MVTec AD",
            url=(
                "https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/download/"
                "420938113-1629960298/mvtec_anomaly_detection.tar.xz"
            ),
            sha256="cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
            size_bytes=5_264_982_680,
            extracted_bytes=5_300_000_000,
            categories=(
                "bottle",
                "cable",
                "capsule",
                "carpet",
                "grid",
                "hazelnut",
                "leather",
                "metal_nut",
                "pill",
                "screw",
                "tile",
                "toothbrush",
                "transistor",
                "wood",
                "zipper",
            ),
            licence="CC BY-NC-SA 4.0",
            licence_url="https://creativecommons.org/licenses/by-nc-sa/4.0/",
            licence_text=(
                "Not for commercial use. Name MVTec as the author, link the licence and say what you changed; "
                "share what you make from the images under the same licence only."
            ),
            citation=(
                "P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger, C. Steger: The MVTec Anomaly Detection Dataset: "
                "A Comprehensive Real-World Dataset for Unsupervised Anomaly Detection. IJCV 129(4), 2021."
            ),
        ),
        Source(
            name="visa",
            title="VisA",
            url=None,
            sha256="2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
            size_bytes=2_000_000_000,
            extracted_bytes=2_000_000_000,
            categories=(
                "candle",
                "capsules",
                "cashew",
                "chewinggum",
                "fryum",
                "macaroni1",
                "macaroni2",
                "pcb1",
                "pcb2",
                "pcb3",
                "pcb4",
                "pipe_fryum",
            ),
            licence="CC BY 4.0",
            licence_url="https://creativecommons.org/licenses/by/4.0/",
            licence_text="Free for any use. Name the authors, link the licence and say what you changed.",
            citation=(
                "Y. Zou, J. Jeong, L. Pemula, D. Zhang, O. Dabeer: SPot-the-Difference Self-Supervised Pre-training "
                "for Anomaly Detection and Segmentation. ECCV 2022."
            ),
        ),
    )
}
