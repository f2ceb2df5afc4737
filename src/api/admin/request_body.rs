//! The body of a request to the operator's API: small, and JSON.

use std::future::poll_fn;
use std::pin::Pin;

use bytes::Bytes;
use http_body::Body;
use serde::de::DeserializeOwned;

use crate::ops::OpsError;

/// A longer one is no task.
const LONGEST: usize = 4 << 20;

/// Reads a document.
pub(super) async fn read_json<T: DeserializeOwned, B>(mut body: B) -> Result<T, OpsError>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut whole = Vec::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|_| OpsError::Invalid("the body did not come to its end".to_owned()))?;
        if let Ok(data) = frame.into_data() {
            if whole.len() + data.len() > LONGEST {
                return Err(OpsError::Invalid(format!("the body is longer than {LONGEST} bytes")));
            }
            whole.extend_from_slice(&data);
        }
    }
    serde_json::from_slice(&whole)
        .map_err(|error| OpsError::Invalid(format!("the body is not understood: {error}")))
}
