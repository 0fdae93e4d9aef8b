# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The embedded default: generated pictures, the small CLIP that was trained on them, and the demonstration of both."""
