"""The public data sets that `m2jl data` knows: where each is published, which of its files are needed, its terms.

    data_set = find("ptb-xl", rate_hz=100)
    data_set.wants("records100/00000/00001_lr.dat")      # True

Publishers list more than a training run reads; `wanted` leaves out the rest (other rates, tools, web pages).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from train.errors import DataError

SMALL_FILE_BYTES = 700  # of headers, which are nearly all that is not signal
PHYSIONET = (
    "Goldberger AL, Amaral LAN, Glass L, et al. PhysioBank, PhysioToolkit, and PhysioNet. "
    "Circulation 101(23):e215-e220 (2000)."
)


@dataclass(frozen=True, slots=True)
class DataSet:
    """One published data set.

    Attributes:
        base_url: the folder of the publisher that holds `SHA256SUMS.txt`; paths are relative to it.
        wanted: regular expressions of the paths to fetch, each for a whole path.
        signal_bytes: size of one signal file, or their mean: checksum lists do not tell sizes.
        records: how many recordings are published.
    """

    name: str
    title: str
    base_url: str
    wanted: tuple[str, ...]
    signal_bytes: int
    records: int
    licence: str
    citation: tuple[str, ...]

    def wants(self, path: str) -> bool:
        """Whether a published file is to be fetched."""
        return any(re.fullmatch(pattern, path) for pattern in self.wanted)

    def expected_bytes(self, path: str) -> int:
        """About how large a file is, before the server has said so."""
        return self.signal_bytes if path.endswith((".dat", ".mat")) else SMALL_FILE_BYTES


PTB_XL = DataSet(
    name="ptb-xl",
    title="PTB-XL 1.0.1",
    base_url="https://physionet.org/files/ptb-xl/1.0.1/",
    wanted=(r"ptbxl_database\.csv", r"scp_statements\.csv", r"LICENSE\.txt", r"records100/.+\.(hea|dat)"),
    signal_bytes=24_000,
    records=21_837,
    licence="Creative Commons Attribution 4.0 International (CC BY 4.0)",
    citation=(
        "Wagner P, Strodthoff N, Bousseljot R, Samek W, Schaeffter T. PTB-XL, a large publicly available "
        "electrocardiography dataset (version 1.0.1). PhysioNet (2020). https://doi.org/10.13026/x4td-x982",
        "Wagner P, Strodthoff N, Bousseljot R-D, et al. PTB-XL, a large publicly available electrocardiography "
        "dataset. Scientific Data 7:154 (2020). https://doi.org/10.1038/s41597-020-0495-6",
        PHYSIONET,
    ),
)

PTB_XL_500_HZ = replace(
    PTB_XL,
    wanted=(*PTB_XL.wanted[:-1], r"records500/.+\.(hea|dat)"),
    signal_bytes=120_000,
)

CPSC2018 = DataSet(
    name="cpsc2018",
    title="CPSC2018, as in the PhysioNet/CinC Challenge 2020, 1.0.2",
    base_url="https://physionet.org/files/challenge-2020/1.0.2/",
    wanted=(r"LICENSE\.txt", r"training/cpsc_2018/(.+/)?RECORDS", r"training/cpsc_2018/.+\.(hea|mat)"),
    signal_bytes=192_000,
    records=6_877,
    licence="Creative Commons Attribution 4.0 International (CC BY 4.0)",
    citation=(
        "Liu F, Liu C, Zhao L, et al. An open access database for evaluating the algorithms of electrocardiogram "
        "rhythm and morphology abnormality detection. Journal of Medical Imaging and Health Informatics "
        "8(7):1368-1373 (2018). https://doi.org/10.1166/jmihi.2018.2442",
        "Perez Alday EA, Gu A, Shah AJ, et al. Classification of 12-lead ECGs: the PhysioNet/Computing in Cardiology "
        "Challenge 2020. Physiological Measurement 41(12):124003 (2020). https://doi.org/10.1088/1361-6579/abc960",
        PHYSIONET,
    ),
)

CINC2017 = DataSet(
    name="cinc2017",
    title="PhysioNet/CinC Challenge 2017, training set, 1.0.0",
    base_url="https://physionet.org/files/challenge-2017/1.0.0/",
    wanted=(
        r"LICENSE\.txt",
        r"REFERENCE-v3\.csv",
        r"training/(REFERENCE\.csv|RECORDS)",
        r"training/.+\.(hea|mat)",
    ),
    signal_bytes=19_500,
    records=8_528,
    licence="Open Data Commons Attribution License 1.0 (ODC-By 1.0)",
    citation=(
        "Clifford GD, Liu C, Moody B, et al. AF classification from a short single lead ECG recording: the "
        "PhysioNet/Computing in Cardiology Challenge 2017. Computing in Cardiology 44 (2017). "
        "https://doi.org/10.22489/CinC.2017.065-469",
        PHYSIONET,
    ),
)

MITDB = DataSet(
    name="mitdb",
    title="MIT-BIH Arrhythmia Database 1.0.0",
    base_url="https://physionet.org/files/mitdb/1.0.0/",
    wanted=(r"RECORDS", r"LICENSE\.txt", r"\d{3}\.(hea|dat|atr)"),
    signal_bytes=1_950_000,
    records=48,
    licence="Open Data Commons Attribution License 1.0 (ODC-By 1.0)",
    citation=(
        "Moody GB, Mark RG. The impact of the MIT-BIH Arrhythmia Database. IEEE Engineering in Medicine and Biology "
        "20(3):45-50 (2001). https://doi.org/10.13026/C2F305",
        PHYSIONET,
    ),
)

NSTDB = DataSet(
    name="nstdb",
    title="MIT-BIH Noise Stress Test Database 1.0.0, its three records of noise",
    base_url="https://physionet.org/files/nstdb/1.0.0/",
    # Not RECORDS: it also names the records that were made of this noise and of two of mitdb's.
    wanted=(r"LICENSE\.txt", r"(bw|em|ma)\.(hea|dat)"),
    signal_bytes=1_950_000,
    records=3,
    licence="Open Data Commons Attribution License 1.0 (ODC-By 1.0)",
    citation=(
        "Moody GB, Muldrow WE, Mark RG. A noise stress test for arrhythmia detectors. Computers in Cardiology "
        "11:381-384 (1984). https://doi.org/10.13026/C2HS3T",
        PHYSIONET,
    ),
)

DATA_SETS = {data_set.name: data_set for data_set in (PTB_XL, CPSC2018, CINC2017, MITDB, NSTDB)}

# The nine findings of CPSC2018, by SNOMED CT code and by the number in its own table.
SNOMED = {
    "426783006": "NSR",
    "164889003": "AF",
    "270492004": "IAVB",
    "164909002": "LBBB",
    "59118001": "RBBB",
    "284470004": "PAC",
    "164884008": "PVC",
    "429622005": "STD",
    "164931005": "STE",
}
CPSC_NUMBERS = dict(enumerate(SNOMED.values(), start=1))


def find(name: str, rate_hz: int | None = None) -> DataSet:
    """The data set of that name; a rate chooses among PTB-XL's two, of which 100 Hz is the usual one.

    Raises:
        DataError: no such data set, or it is not published at that rate.
    """
    if name not in DATA_SETS:
        raise DataError(f"there is no data set {name!r}; there are: {', '.join(DATA_SETS)}")
    if rate_hz is None or (name, rate_hz) == ("ptb-xl", 100):
        return DATA_SETS[name]
    if (name, rate_hz) == ("ptb-xl", 500):
        return PTB_XL_500_HZ
    raise DataError(f"{name} has no choice of {rate_hz} Hz; only ptb-xl is published at two rates, 100 and 500")
