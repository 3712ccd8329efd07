//! The bindings that wit-bindgen generates.
wit_bindgen::generate!({
    world: "aligner",
    path: "../wit/policy-0.1",
    pub_export_macro: true,
    default_bindings_module: "vassal_guest::__bindings",
});
