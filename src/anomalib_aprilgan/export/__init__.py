# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""Export to torch, ONNX and OpenVINO, 8-bit computation, and product files."""
