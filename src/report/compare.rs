//! Where two runs differ.
//!
//! Owns the comparison of two results.json. It compares what was found, not what was used: versions
//! may differ.

use serde_json::Value;

/// The places in which the figures of two results differ, with both values: `policies[0].domains[1].report.counter: 5 | 6`.
///
/// ```
/// use serde_json::json;
///
/// let a = json!({ "schema": 1, "policies": [{ "policy": "spin", "domains": [] }] });
/// let mut b = a.clone();
/// assert!(pvlab::report::differences(&a, &b).is_empty());
/// b["policies"][0]["policy"] = json!("native");
/// assert_eq!(pvlab::report::differences(&a, &b), [r#"policies[0].policy: "spin" | "native""#]);
/// ```
pub fn differences(a: &Value, b: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for key in ["schema", "scenario", "mode", "settings", "markers", "policies"] {
        walk(key, &a[key], &b[key], &mut found);
    }
    found
}

fn walk(place: &str, a: &Value, b: &Value, found: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(left), Value::Object(right)) => {
            let only_right = right.keys().filter(|key| !left.contains_key(*key));
            for key in left.keys().chain(only_right) {
                walk(&format!("{place}.{key}"), &a[key], &b[key], found);
            }
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            for (index, (a, b)) in left.iter().zip(right).enumerate() {
                walk(&format!("{place}[{index}]"), a, b, found);
            }
        }
        _ if a == b => {}
        _ => found.push(format!("{place}: {} | {}", short(a), short(b))),
    }
}

fn short(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("{} entries", list.len()),
        Value::Object(_) => "an object".to_owned(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_kind_of_difference_is_found_and_versions_are_left_out() {
        let a = json!({ "versions": 1, "policies": [{ "x": 1, "gone": 2, "list": [1, 2] }] });
        let b = json!({ "versions": 2, "policies": [{ "x": 2, "new": 3, "list": [1] }] });
        let mut found = differences(&a, &b);
        found.sort();
        assert_eq!(
            found,
            [
                "policies[0].gone: 2 | null",
                "policies[0].list: 2 entries | 1 entries",
                "policies[0].new: null | 3",
                "policies[0].x: 1 | 2"
            ]
        );
    }
}
