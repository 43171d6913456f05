//! Binding of [`crate::web::url_filter`].

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::web::url_filter::{self, Hashes};

/// Lists of addresses and words; see `rslm.data.url_filter`.
#[pyclass(frozen)]
pub struct UrlLists(url_filter::UrlLists);

#[pymethods]
impl UrlLists {
    /// Of iterables of entries as they are compared.
    #[new]
    fn new(
        domains: &Bound<'_, PyAny>,
        urls: &Bound<'_, PyAny>,
        words: [Vec<Vec<u8>>; 4],
        n_soft: usize,
    ) -> PyResult<Self> {
        let (domains, urls) = (hashes_of(domains)?, hashes_of(urls)?);
        Ok(Self(url_filter::UrlLists::new(
            domains, urls, words, n_soft,
        )?))
    }

    /// The reason of each address; None where the host must be given.
    fn reasons(&self, urls: Vec<Bound<'_, PyString>>) -> Vec<Option<&'static str>> {
        let bytes = urls.iter().map(|url| url.to_str().ok());
        bytes.map(|url| self.0.reason(url?.as_bytes())).collect()
    }

    /// The reason of an address whose host is given, both in UTF-8 with surrogates.
    fn reason_with_host(&self, url: &[u8], host: &[u8]) -> &'static str {
        self.0.reason_with_host(url, host)
    }

    fn registered_domain<'py>(&self, py: Python<'py>, host: &[u8]) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.registered_domain(host))
    }
}

/// Millions of entries, hashed one by one as they come.
fn hashes_of(entries: &Bound<'_, PyAny>) -> PyResult<Hashes> {
    let mut hashes = Vec::new();
    for entry in entries.try_iter()? {
        let entry = entry?.cast_into::<PyString>()?;
        hashes.push(match entry.to_str() {
            Ok(text) => Hashes::hash(text.as_bytes()),
            Err(_) => Hashes::hash(surrogates_passed(&entry)?.as_bytes()),
        });
    }
    Ok(Hashes::new(hashes))
}

fn surrogates_passed<'py>(text: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyBytes>> {
    let encoded = text.call_method1("encode", ("utf-8", "surrogatepass"))?;
    Ok(encoded.cast_into::<PyBytes>()?)
}
