//! Transactions over facts.

use sled::transaction::{
    ConflictableTransactionError, TransactionError, TransactionalTree, UnabortableTransactionError,
};

use crate::store::error::StoreError;

/// Changes several facts in one atomic step. `change` must be repeatable: sled runs it again after a conflict.
pub(in crate::store) fn transact<T>(
    facts: &sled::Tree,
    change: impl Fn(&TransactionalTree) -> Result<T, UnabortableTransactionError>,
) -> Result<T, StoreError> {
    let done = facts.transaction(|facts| Ok::<_, ConflictableTransactionError<()>>(change(facts)?));
    done.map_err(|error| match error {
        TransactionError::Storage(error) => error.into(),
        TransactionError::Abort(()) => StoreError::Fact("a change aborted itself".to_owned()),
    })
}
