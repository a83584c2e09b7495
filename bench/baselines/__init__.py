"""What edgetta is compared with: test-time adaptation on stock torch autograd, one method per file.

A method is made from any trained `nn.Module` and is then called batch by batch; the module given is never changed.

| class | what it does | reads |
|---|---|---|
| `Source` | nothing: the statistics of training | - |
| `BatchNormStatistics` | each batch normalises with its own statistics | Schneider et al. 2020, Nado et al. 2020 |
| `Tent` | minimises entropy over BatchNorm's weight and bias | Wang et al. 2021 |
| `Eata` | entropy of reliable, diverse samples; weights held near the source's | Niu et al. 2022 |
| `Cotta` | follows an averaged teacher, everything trains | Wang et al. 2022 |
| `Sar` | entropy of reliable samples at a sharp neighbour; recovers when it collapses | Niu et al. 2023 |
| `Rotta` | slow statistics, a class-balanced memory, an averaged teacher | Yuan et al. 2023 |
| `Rdumb` | EATA that forgets everything every 1,000 batches | Press et al. 2023 |
| `Roid` | certain and diverse samples, consistency, ensembling, prior correction | Marsden et al. 2024 |
| `Note` | instance-aware statistics, a reservoir balanced by predicted class | Gong et al. 2022 |
| `UnmixTns` | statistics of several components, of which an image moves those that it resembles | Tomar et al. 2024 |
| `Delta` | renormalises batches with averages of the stream; rare classes weigh more | Zhao et al. 2023 |
| `EcottaStock` | edgetta's own mathematics, kept by autograd | Song et al. 2023 |

To add one, add a file with a class that is a `Method`, and name it here.
"""

from edgetta.bench.baselines.batch_norm_statistics import BatchNormStatistics
from edgetta.bench.baselines.cotta import Cotta, CottaConfig
from edgetta.bench.baselines.delta import Delta, DeltaConfig
from edgetta.bench.baselines.eata import Eata, EataConfig
from edgetta.bench.baselines.ecotta_stock import EcottaStock, StockMeta, stock_metas
from edgetta.bench.baselines.method import Method, error_rate
from edgetta.bench.baselines.note import Note, NoteConfig
from edgetta.bench.baselines.rdumb import Rdumb
from edgetta.bench.baselines.roid import Roid, RoidConfig
from edgetta.bench.baselines.rotta import Rotta, RottaConfig
from edgetta.bench.baselines.sar import Sar, SarConfig
from edgetta.bench.baselines.source import Source
from edgetta.bench.baselines.tent import Tent, TentConfig
from edgetta.bench.baselines.unmix_tns import UnmixTns, UnmixTnsConfig

__all__ = [
    "BatchNormStatistics",
    "Cotta",
    "CottaConfig",
    "Delta",
    "DeltaConfig",
    "Eata",
    "EataConfig",
    "EcottaStock",
    "Method",
    "Note",
    "NoteConfig",
    "Rdumb",
    "Roid",
    "RoidConfig",
    "Rotta",
    "RottaConfig",
    "Sar",
    "SarConfig",
    "Source",
    "StockMeta",
    "Tent",
    "TentConfig",
    "UnmixTns",
    "UnmixTnsConfig",
    "error_rate",
    "stock_metas",
]
