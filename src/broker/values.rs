//! AMQP values for people and for scripts.

use lapin::types::AMQPValue;
use serde_json::Value;

/// The value as text. Bytes are only counted: what they mean nobody knows.
pub fn text_of(value: &AMQPValue) -> String {
    match json_of(value) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// The value as JSON.
pub fn json_of(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(value) => (*value).into(),
        AMQPValue::ShortShortInt(value) => (*value).into(),
        AMQPValue::ShortShortUInt(value) => (*value).into(),
        AMQPValue::ShortInt(value) => (*value).into(),
        AMQPValue::ShortUInt(value) => (*value).into(),
        AMQPValue::LongInt(value) => (*value).into(),
        AMQPValue::LongUInt(value) => (*value).into(),
        AMQPValue::LongLongInt(value) => (*value).into(),
        AMQPValue::Float(value) => (*value).into(),
        AMQPValue::Double(value) => (*value).into(),
        AMQPValue::Timestamp(value) => (*value).into(),
        AMQPValue::DecimalValue(value) => format!("{}e-{}", value.value, value.scale).into(),
        AMQPValue::ShortString(value) => value.as_str().into(),
        AMQPValue::LongString(value) => value.to_string().into(),
        AMQPValue::ByteArray(value) => format!("{} bytes", value.len()).into(),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(json_of).collect(),
        AMQPValue::FieldTable(values) => {
            let entries = values.inner().iter();
            Value::Object(
                entries
                    .map(|(name, value)| (name.to_string(), json_of(value)))
                    .collect(),
            )
        }
        AMQPValue::Void => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stand_by_themselves_and_tables_are_json() {
        let mut death = lapin::types::FieldTable::default();
        death.insert("count".into(), AMQPValue::LongLongInt(2));
        death.insert("reason".into(), AMQPValue::LongString("expired".into()));
        let deaths = AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into());

        assert_eq!(text_of(&AMQPValue::LongString("é".into())), "é");
        assert_eq!(text_of(&AMQPValue::LongLongInt(-3)), "-3");
        assert_eq!(text_of(&AMQPValue::ByteArray(vec![1, 2].into())), "2 bytes");
        assert_eq!(text_of(&deaths), r#"[{"count":2,"reason":"expired"}]"#);
    }
}
