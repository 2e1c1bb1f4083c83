//! CloudFormation's YAML as JSON.

use saphyr::{LoadableYamlNode as _, Scalar, Yaml};
use serde_json::{Map, Value, json};

/// Reads a document, and writes its short tags out: `!Ref X` is `{"Ref": "X"}`.
pub(crate) fn read(text: &str) -> Result<Value, String> {
    let documents = Yaml::load_from_str(text).map_err(|e| format!("no YAML: {e}"))?;
    match &documents[..] {
        [document] => json_of(document),
        several => Err(format!("{} documents, not one", several.len())),
    }
}

fn json_of(yaml: &Yaml<'_>) -> Result<Value, String> {
    Ok(match yaml {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(value)) => json!(value),
        Yaml::Value(Scalar::Integer(value)) => json!(value),
        Yaml::Value(Scalar::FloatingPoint(value)) => json!(value.into_inner()),
        Yaml::Value(Scalar::String(value)) => json!(value),
        Yaml::Sequence(items) => Value::Array(items.iter().map(json_of).collect::<Result<_, _>>()?),
        Yaml::Mapping(entries) => {
            let mut object = Map::new();
            for (key, value) in entries {
                let key = key.as_str().ok_or_else(|| format!("a key that is no string: {key:?}"))?;
                if object.insert(key.to_owned(), json_of(value)?).is_some() {
                    return Err(format!("{key} is there twice"));
                }
            }
            Value::Object(object)
        }
        Yaml::Tagged(tag, inner) => written_out(&tag.suffix, json_of(inner)?),
        other => return Err(format!("cannot read {other:?}")),
    })
}

fn written_out(tag: &str, value: Value) -> Value {
    match (tag, &value) {
        ("Ref" | "Condition", _) => json!({ tag: value }),
        ("GetAtt", Value::String(path)) => match path.split_once('.') {
            Some((resource, attribute)) => json!({ "Fn::GetAtt": [resource, attribute] }),
            None => json!({ "Fn::GetAtt": [path] }),
        },
        _ => json!({ format!("Fn::{tag}"): value }),
    }
}
