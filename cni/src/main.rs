//! The CNI plugin executable; see [`hypha_cni::shim`].

fn main() {
    std::process::exit(hypha_cni::shim::run());
}
