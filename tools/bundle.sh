#!/usr/bin/env bash
# Makes one archive with all that a machine lacks which has torch, torchvision and transformers, but neither
# network nor compiler:  tools/bundle.sh [--python 3.12] [--out FILE] [--fast] [--no-test]
#
#   --python   of the machine that unpacks it; default: that of the Python found here
#   --out      default: dsvlp-bundle-pyVERSION.tar.xz in the current folder
#   --fast     packs in seconds, but larger (66 MB); for trying things out
#   --no-test  leaves out the self-test, which unpacks the archive and trains three steps from it
#
# There:  tar xf dsvlp-bundle-py3.12.tar.xz && source dsvlp-bundle-py3.12-*/activate && dsvlp doctor
# TEST_PYTHON: the interpreter for the self-test, where it is another than the one that collects.
# It needs a network, g++, binutils, xz, and what Debian's libopencv-dev and libturbojpeg0-dev bring. A bundle
# made on Debian 12 runs with glibc 2.34 or newer and GCC 11's libstdc++ or newer: manifest.json says it.
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

LIMIT_BYTES=60000000
XZ=(xz -T1 --memlimit-compress=1500MiB --x86 --lzma2=preset=9e,dict=64MiB)
TEST=1 VERSION="" OUT=""

usage() {
    sed -n '2,/^source/{/^source/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
}

arguments() {
    while [ $# -gt 0 ]; do
        case "$1" in
            --python) VERSION="${2:-}"; [ $# -ge 2 ] && shift ;;
            --out) OUT="${2:-}"; [ -n "$OUT" ] || fail "--out needs a file name, as in --out bundle.tar.xz"; shift ;;
            --fast) XZ=(xz -T1 -0) LIMIT_BYTES=150000000 ;;
            --no-test) TEST="" ;;
            -h | --help) usage; exit 0 ;;
            *) fail "unknown argument '$1'. Known: --python 3.11|3.12, --out FILE, --fast, --no-test, --help" ;;
        esac
        shift
    done
    case "$VERSION" in
        "" | 3.11 | 3.12) ;;
        *) fail "--python is '$VERSION'; dsvlp runs on 3.11 and 3.12: name one of them." ;;
    esac
}

# The Python that runs pip: $PYTHON, the checkout's own environment, or any other.
builder() {
    if [ -z "${PYTHON:-}" ] && [ -x "$VENV/bin/python" ]; then
        echo "$VENV/bin/python"
    else
        find_python
    fi
}

needs() {
    local program file missing=()
    [ "$(uname -m)" = x86_64 ] || fail "this is a $(uname -m) machine; the bundle's packages exist for x86_64."
    for program in g++ pkg-config readelf strip nm xz tar; do
        command -v "$program" >/dev/null || missing+=("$program")
    done
    [ "${#missing[@]}" = 0 ] || fail "not found: ${missing[*]}. Run: apt-get install -y g++ pkg-config binutils xz-utils tar"
    for file in libopencv_core.a libopencv_imgproc.a libturbojpeg.so libtbb.so.12; do
        [ -f "$(library $file)" ] ||
            fail "$file was not found. Run on Debian 12 or newer: apt-get install -y libopencv-dev libturbojpeg0-dev"
    done
}

library() { g++ -print-file-name="$1"; }

# FFCV's C++ file uses OpenCV for one function (resize): core and imgproc are linked in, unused parts dropped.
# libjpeg-turbo and TBB exist as shared libraries only (their archives are not position independent); they lie
# beside the extension. Py_LIMITED_API: one binary serves all versions of Python.
build_ffcv() {
    local site="$1" source package include
    step "building ffcv" "The lines above say what g++ or pip missed."
    "$PY" -m pip --disable-pip-version-check download -q --no-deps --no-binary :all: -d "$WORK/source" \
        "$(requirement ffcv)"
    tar xf "$WORK"/source/ffcv-*.tar.gz -C "$WORK/source"
    source="$(echo "$WORK"/source/ffcv-*/)" package="$site/ffcv"
    cp -r "${source}ffcv" "$site/"
    include="$("$PY" -c 'import sysconfig; print(sysconfig.get_path("include"))')"
    echo 'extern "C" __attribute__((visibility("hidden"))) void *glXGetProcAddressARB(const unsigned char *) { return nullptr; }' \
        >"$WORK/source/no_opengl.cpp" # OpenCV's core names it; nothing here draws
    # shellcheck disable=SC2046  # words
    (cd "${source}libffcv" && g++ -shared -fPIC -O2 -DNDEBUG -DPy_LIMITED_API=0x030b0000 -I"$include" \
        -ffunction-sections -fdata-sections libffcv.cpp ../../no_opengl.cpp -o "$package/_libffcv.abi3.so" \
        $(pkg-config --cflags opencv4 libturbojpeg) -s -Wl,--gc-sections -Wl,--exclude-libs,ALL \
        -Wl,--build-id=none "-Wl,-rpath,\$ORIGIN/libraries" \
        -l:libopencv_imgproc.a -l:libopencv_core.a -l:libz.a -lturbojpeg -l:libtbb.so.12 -lpthread -ldl -lm)
    mkdir "$package/libraries"
    for name in libturbojpeg.so.0 libtbb.so.12; do
        strip --strip-unneeded -o "$package/libraries/$name" "$(readlink -f "$(library "$name")")"
    done
    only_stable_abi "$package/_libffcv.abi3.so"
    "$PY" "$ROOT/tools/bundle/collect.py" ffcv --source "$source" --site "$site"
}

only_stable_abi() {
    local names
    names="$(nm -D --undefined-only "$1" | awk '{print $NF}' | grep -E '^_?Py' | tr '\n' ' ')"
    [ "$names" = "PyModule_Create2 " ] || fail "ffcv's extension uses $names of Python; only PyModule_Create2 is known to serve all versions."
}

# Sorted names, one date, one owner: the same contents give the same bytes.
pack() {
    local folder="$1" size
    step "packing" "Free some memory (700 MB) and disk."
    LC_ALL=C tar -c --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu \
        --mode=u+rwX,go+rX,go-w -C "$WORK" "$folder" | "${XZ[@]}" >"$OUT.partial"
    size="$(stat -c %s "$OUT.partial")"
    [ "$size" -le "$LIMIT_BYTES" ] || fail "the archive has $size bytes, more than $LIMIT_BYTES: leave something out in tools/bundle/collect.py. It lies at $OUT.partial"
    mv "$OUT.partial" "$OUT"
    say "$OUT: $size bytes, SHA-256 $(sha256sum "$OUT" | cut -d' ' -f1)"
}

# Uses the archive where a Python of its version with torch is at hand; says so where it is not.
self_test() {
    local target
    step "testing the archive" "It lies at $OUT; the lines above say what is wrong with it."
    for target in ${TEST_PYTHON:-"$PY" "python$VERSION"}; do
        if "$target" -c "import sys, importlib.metadata as m
for name in ('torch', 'torchvision', 'transformers'): m.version(name)
sys.exit('%d.%d' % sys.version_info[:2] != '$VERSION')" 2>/dev/null; then
            "$target" "$ROOT/tools/bundle/selftest.py" "$OUT" --use
            return
        fi
    done
    "$PY" "$ROOT/tools/bundle/selftest.py" "$OUT"
    say "not tested by use: there is no Python $VERSION with torch, torchvision and transformers here (TEST_PYTHON names one)"
}

main() {
    arguments "$@"
    PY="$(builder)"
    [ -n "$PY" ] || fail "no Python 3.11 or 3.12 was found. Name it: PYTHON=/path/to/python3 bash $0"
    needs
    [ -n "$VERSION" ] || VERSION="$("$PY" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    OUT="$(realpath -m "${OUT:-dsvlp-bundle-py$VERSION.tar.xz}")"
    mkdir -p "$(dirname "$OUT")"
    WORK="$(mktemp -d)"
    trap 'rm -rf "$WORK"' EXIT
    local site="$WORK/bundle/lib/python$VERSION/site-packages" folder
    mkdir -p "$WORK/source" "$site"
    cp -r "$ROOT/tools/bundle/inside/." "$WORK/bundle/"
    build_ffcv "$site"
    step "collecting the packages for Python $VERSION" "Check the network, then run this script again."
    "$PY" "$ROOT/tools/bundle/collect.py" packages --python "$VERSION" --work "$WORK/source" --site "$site"
    "$PY" "$ROOT/tools/bundle/collect.py" manifest --python "$VERSION" --bundle "$WORK/bundle"
    # Its digest in the name: two bundles never share a folder, nor the byte code that Python left in it.
    folder="dsvlp-bundle-py$VERSION-$(sha256sum "$WORK/bundle/manifest.json" | cut -c1-8)"
    mv "$WORK/bundle" "$WORK/$folder"
    pack "$folder"
    [ -z "$TEST" ] || self_test
}

main "$@"
