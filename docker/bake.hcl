# All images at once, each with an SBOM and provenance attestation:
#
#   docker buildx bake -f docker/bake.hcl
#   REGISTRY=registry.example.org/team/ TAG=0.1.0 docker buildx bake -f docker/bake.hcl --push

variable "REGISTRY" { default = "" }
variable "TAG" { default = "0.1.0" }
variable "REVISION" { default = "unknown" }
variable "SOURCE" { default = "unknown" }
# Bases by digest: PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:...
variable "PYTHON_IMAGE" { default = "python:3.11.14-slim-bookworm" }
variable "VLLM_IMAGE" { default = "vllm/vllm-openai:v0.32.0" }
# For torch in engine-cpu and loadtest alone; see docker/Dockerfile.
variable "TORCH_INDEX_ARGS" { default = "" }

group "default" {
  targets = ["gateway", "engine-cpu", "engine-cuda", "training", "loadtest"]
}

target "common" {
  context    = "."
  dockerfile = "docker/Dockerfile"
  args = {
    PYTHON_IMAGE = PYTHON_IMAGE
    VLLM_IMAGE   = VLLM_IMAGE
    VERSION      = TAG
    REVISION     = REVISION
    SOURCE       = SOURCE
  }
  attest = ["type=sbom", "type=provenance,mode=max"]
}

target "gateway" {
  inherits = ["common"]
  target   = "gateway"
  tags     = ["${REGISTRY}vora-serve-gateway:${TAG}"]
}

target "engine-cpu" {
  inherits = ["common"]
  target   = "engine-cpu"
  tags     = ["${REGISTRY}vora-serve-engine-cpu:${TAG}"]
  args     = { TORCH_INDEX_ARGS = TORCH_INDEX_ARGS }
}

target "engine-cuda" {
  inherits = ["common"]
  target   = "engine-cuda"
  tags     = ["${REGISTRY}vora-serve-engine-cuda:${TAG}"]
}

target "training" {
  inherits = ["common"]
  target   = "training"
  tags     = ["${REGISTRY}vora-serve-training:${TAG}"]
}

target "loadtest" {
  inherits = ["common"]
  target   = "loadtest"
  tags     = ["${REGISTRY}vora-serve-loadtest:${TAG}"]
  args     = { TORCH_INDEX_ARGS = TORCH_INDEX_ARGS }
}
