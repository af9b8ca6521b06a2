"""How current a platform is: Intel's words for it, spelled as Intel spells them.

Follows the PCS API version 4 and Intel's quote verification library. What a signed
document may say of one level is narrower than what a verification may end with:
"relaunch advised" is concluded, never stated, and "revoked" is a refusal.
"""

from __future__ import annotations

from typing import Literal

# What TCB info may say of a level of the platform.
LevelStatus = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
]

# What may be said of a level of the quoting enclave or of the TDX module.
EnclaveStatus = Literal["UpToDate", "OutOfDate", "Revoked"]

# What the claims of a genuine quote may say.
TcbStatus = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
]
TCB_STATUSES: tuple[TcbStatus, ...] = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
)
