# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Files: adapters, CLIP weights and checkpoints, how they are read and written, and where they come from."""
