//! Attributes: small values that hang on a VDI's name and live as long as any VDI of that name.

use proto::client::{ATTRIBUTE_KEY_MAX, ATTRIBUTE_VALUE_MAX, ClientError};

use super::{Accepted, Outcome, View};

/// Keys and values of one name together: every sheep keeps them in memory.
const NAME_BYTES_MAX: usize = 1 << 20;

impl View {
    pub fn attribute(&self, name: &[u8], key: &[u8]) -> Result<&[u8], ClientError> {
        if self.named(name).next().is_none() {
            return Err(ClientError::NoVdi);
        }
        let value = self.attributes.get(name).and_then(|all| all.get(key));
        value.map(Vec::as_slice).ok_or(ClientError::NoAttribute)
    }

    pub(super) fn set_attribute(
        &mut self,
        name: &[u8],
        key: &[u8],
        value: &[u8],
        exclusive: bool,
    ) -> Outcome {
        if key.is_empty() || key.len() > ATTRIBUTE_KEY_MAX || value.len() > ATTRIBUTE_VALUE_MAX {
            return Err(ClientError::InvalidParameters);
        }
        if self.named(name).next().is_none() {
            return Err(ClientError::NoVdi);
        }
        let all = self.attributes.entry(name.to_vec()).or_default();
        if exclusive && all.contains_key(key) {
            return Err(ClientError::AttributeExists);
        }
        let others: usize = all.iter().filter(|(k, _)| *k != key).map(|(k, v)| k.len() + v.len()).sum();
        if others + key.len() + value.len() > NAME_BYTES_MAX {
            return Err(ClientError::NoSpace);
        }
        all.insert(key.to_vec(), value.to_vec());
        Ok(Accepted::Done)
    }

    pub(super) fn delete_attribute(&mut self, name: &[u8], key: &[u8]) -> Outcome {
        self.attribute(name, key)?;
        if let Some(all) = self.attributes.get_mut(name) {
            all.remove(key);
        }
        Ok(Accepted::Done)
    }
}
