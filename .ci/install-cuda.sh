#!/usr/bin/env bash
# Installs what compiling for CUDA 12.4 takes (nvcc, ptxas, headers, the static runtime) from Debian's packages, in the
# layout of NVIDIA's own toolkit. Needs neither a GPU nor a driver, but Debian's package mirror and root's rights.
# Usage: install-cuda.sh [PREFIX]      (/opt/cuda-12.4 unless given; a toolkit that is there already is left as it is)
set -euo pipefail
prefix="${1:-/opt/cuda-12.4}"
if [[ -x "$prefix/bin/nvcc" ]] && "$prefix/bin/nvcc" --version >/dev/null 2>&1; then
  echo "CUDA toolkit already at $prefix"
  exit 0
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# The mirror that the machine uses already. CUDA 12.4 is part of Debian 13 (trixie); lists and cache of apt's own keep the
# machine's sources as they are.
shopt -s nullglob
mirror="$(cat /dev/null /etc/apt/sources.list* /etc/apt/sources.list.d/* 2>/dev/null |
  sed -nE 's#^(URIs:|deb) .*(https?://[^ ]+/debian)/?( .*)?$#\2#p' | sed -n 1p)" || true
[[ -n "$mirror" ]] || mirror=https://deb.debian.org/debian
mkdir -p "$work"/{lists/partial,cache/archives/partial,debs,root,parts}
cat >"$work/parts/trixie.sources" <<SOURCE
Types: deb
URIs: $mirror
Suites: trixie
Components: main contrib non-free
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCE
apt=(apt-get -qq -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o Dir::Etc::SourceList=/dev/null
  -o Dir::Etc::SourceParts="$work/parts" -o APT::Get::List-Cleanup=0 -o APT::Sandbox::User=root)
"${apt[@]}" update
(cd "$work/debs" && "${apt[@]}" download \
  nvidia-cuda-toolkit nvidia-cuda-dev libnvvm4 libcudart12 libcu++-dev libcub-dev libthrust-dev)

for package in "$work"/debs/*.deb; do
  # Kernels need none of the mathematical libraries, which are the bulk.
  dpkg-deb --fsys-tarfile "$package" | tar x -C "$work/root" \
    --exclude='*libcu[bfrs][!d]*' --exclude='*libnpp*' --exclude='*libnvjpeg*' --exclude='*libnv[rj]*' \
    --exclude='*compute-sanitizer*'
done

usr="$work/root/usr"
mkdir -p "$prefix"/{bin,nvvm/bin,nvvm/libdevice,lib64}
cp "$usr"/bin/{ptxas,fatbinary,nvlink,cudafe++,bin2c,cuobjdump,nvdisasm,cu++filt} "$prefix/bin/"
cp "$usr/lib/nvidia-cuda-toolkit/bin/nvcc" "$prefix/bin/"
cp "$usr/lib/nvidia-cuda-toolkit/bin/cicc" "$prefix/nvvm/bin/"
cp -r "$usr/lib/nvidia-cuda-toolkit/bin/crt" "$prefix/bin/"
cp "$usr/lib/nvidia-cuda-toolkit/libdevice/"* "$prefix/nvvm/libdevice/"
cp -r "$usr/include" "$prefix/"
cp -a "$usr"/lib/x86_64-linux-gnu/{libcudart_static.a,libcudadevrt.a,libcudart.so*} "$prefix/lib64/"
cat >"$prefix/bin/nvcc.profile" <<'PROFILE'
TOP = $(_HERE_)/..
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
LD_LIBRARY_PATH += $(TOP)/lib64:
PATH += $(TOP)/nvvm/bin:$(_HERE_):
INCLUDES += "-I$(TOP)/include" $(_SPACE_)
LIBRARIES =+ $(_SPACE_) "-L$(TOP)/lib64"
PROFILE
"$prefix/bin/nvcc" --version | tail -2
