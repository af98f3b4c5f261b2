//! LoRA adapters that come and go. The expected bodies were taken from vLLM 0.32.

use crate::server::{Mock, head, post, post_with};
use crate::{CHAT, chat};
use rstest::rstest;
use serde_json::{Value, json};

const LOAD: &str = "/v1/load_lora_adapter";
const UNLOAD: &str = "/v1/unload_lora_adapter";

/// Name, path and base of each adapter listed.
fn listed(mock: &Mock) -> Vec<[Value; 3]> {
    let list = mock.get("/v1/models").json();
    let cards = list["data"].as_array().expect("cards").iter();
    let fields = |card: &Value| ["id", "root", "parent"].map(|name| card[name].clone());
    cards.filter(|card| !card["parent"].is_null()).map(fields).collect()
}

#[test]
fn adapters_come_and_go() {
    let mock = Mock::start(&["--runtime-lora", "--lora", "a=/x/a", "--lora", "b"]);
    let first = json!(["a", "/x/a", "tiny"]);
    assert_eq!(json!(listed(&mock)), json!([first, ["b", "/adapters/b", "tiny"]]));
    let asked = chat(r#","model":"c""#);
    assert_eq!(mock.post(CHAT, &asked).status, 404);

    let loaded = mock.post(LOAD, r#"{"lora_name":"c","lora_path":"/x/c"}"#);
    assert_eq!(loaded.text(), "Success: LoRA adapter 'c' added successfully.");
    assert_eq!((loaded.status, loaded.header("content-type")), (200, None));
    assert_eq!(mock.post(CHAT, &asked).json()["model"], "c");
    let again = r#"{"lora_name":"c","lora_path":"/x/d","load_inplace":true}"#;
    assert_eq!(mock.post(LOAD, again).status, 200);
    assert_eq!(json!(listed(&mock)[2]), json!(["c", "/x/d", "tiny"]));

    let unloaded = mock.post(UNLOAD, r#"{"lora_name":"b"}"#);
    assert_eq!(unloaded.text(), "Success: LoRA adapter 'b' removed successfully.");
    assert_eq!(json!(listed(&mock)), json!([first, ["c", "/x/d", "tiny"]]));
}

#[rstest]
#[case::twice(LOAD, r#"{"lora_name":"a","lora_path":"/x"}"#, 400, r#"{"error":{"message":"The lora adapter 'a' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True.","type":"InvalidUserInput","param":null,"code":400}}"#)]
#[case::a_models_name(LOAD, r#"{"lora_name":"tiny","lora_path":"/x"}"#, 400, r#"{"error":{"message":"The lora adapter 'tiny' conflicts with a served base model.","type":"InvalidUserInput","param":null,"code":400}}"#)]
#[case::no_name(LOAD, r#"{"lora_name":"","lora_path":"/x"}"#, 400, r#"{"error":{"message":"Both 'lora_name' and 'lora_path' must be provided.","type":"InvalidUserInput","param":null,"code":400}}"#)]
#[case::no_path(LOAD, r#"{"lora_name":"z"}"#, 400, r#"{"error":{"message":"1 validation error:\n  {'type': 'missing', 'loc': 'body.lora_path', 'msg': 'Field required', 'input': '<dict of 1 items>'}","type":"Bad Request","param":"body.lora_path","code":400}}"#)]
#[case::no_file(LOAD, r#"{"lora_name":"z","lora_path":"/x/missing"}"#, 404, r#"{"error":{"message":"Loading lora z failed: No adapter found for /x/missing","type":"NotFoundError","param":null,"code":404}}"#)]
#[case::not_loaded(UNLOAD, r#"{"lora_name":"z"}"#, 404, r#"{"error":{"message":"The lora adapter 'z' cannot be found.","type":"NotFoundError","param":null,"code":404}}"#)]
#[case::none_named(UNLOAD, r#"{"lora_name":""}"#, 400, r#"{"error":{"message":"'lora_name' needs to be provided to unload a LoRA adapter.","type":"InvalidUserInput","param":null,"code":400}}"#)]
#[case::registered_twice("/adapters", r#"{"name":"a","src":"/x"}"#, 400, r#"{"error":{"message":"The lora adapter 'a' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True.","type":"InvalidUserInput","param":null,"code":400}}"#)]
#[case::no_source("/adapters", r#"{"name":"s1"}"#, 400, r#"{"error":{"message":"[{\"type\":\"missing\",\"loc\":[\"src\"],\"msg\":\"Field required\",\"input\":{\"name\":\"s1\"}}]","type":"Bad Request","param":null,"code":400}}"#)]
#[case::empty_source("/adapters", r#"{"name":"s1","src":""}"#, 400, r#"{"error":{"message":"[{\"type\":\"value_error\",\"loc\":[\"src\"],\"msg\":\"Value error, The parameter src cannot be an empty string\",\"input\":\"\",\"ctx\":{\"error\":\"The parameter src cannot be an empty string\"}}]","type":"Bad Request","param":null,"code":400}}"#)]
fn mistakes_are_told_as_vllm_does(
    #[case] path: &str,
    #[case] body: &str,
    #[case] status: u16,
    #[case] error: &str,
) {
    let mock = Mock::start(&["--runtime-lora", "--lora", "a"]);
    let answer = mock.post(path, body);
    assert_eq!((answer.status, answer.text().as_str()), (status, error));
}

#[test]
fn sagemaker_has_its_own_names_for_it() {
    let mock = Mock::start(&["--runtime-lora"]);
    let registered = mock.post("/adapters", r#"{"name":"s","src":"/x/s"}"#);
    assert_eq!((registered.status, registered.text().as_str()), (200, "Adapter s registered"));
    let alias = "x-amzn-sagemaker-adapter-alias: al\r\n";
    let other = mock.send(&post_with("/adapters", alias, r#"{"name":"t","src":"/x/t"}"#)).answer();
    assert_eq!(other.text(), "Adapter al registered", "of whatever type the body is");
    assert_eq!(mock.send(&post("/adapters?name=q&src=/x/q", "")).answer().status, 200);
    assert_eq!(listed(&mock).len(), 3);
    let delete = || mock.send(&head("DELETE", "/adapters/s", "", None)).answer();
    assert_eq!(delete().text(), "Adapter s unregistered");
    assert_eq!(delete().status, 404);
    let wrong = mock.get("/adapters/t");
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("DELETE")));
}

#[rstest]
#[case::load("POST", LOAD)]
#[case::unload("POST", UNLOAD)]
#[case::register("POST", "/adapters")]
#[case::unregister("DELETE", "/adapters/a")]
fn without_the_option_there_is_no_such_route(#[case] method: &str, #[case] path: &str) {
    let mock = Mock::start(&["--lora", "a"]);
    let answer = mock.send(&head(method, path, "", None)).answer();
    assert_eq!((answer.status, answer.text().as_str()), (404, r#"{"detail":"Not Found"}"#));
}

#[rstest]
#[case::model("tiny")]
#[case::adapter("a")]
fn what_is_listed_can_be_denied(#[case] name: &str) {
    let mock = Mock::start(&["--lora", "a", "--deny-model", name]);
    assert!(mock.get("/v1/models").text().contains(&format!(r#""id":"{name}""#)));
    let answer = mock.post(CHAT, &chat(&format!(r#","model":"{name}""#)));
    let message = format!("The model `{name}` does not exist. Valid aliases: tiny.");
    assert_eq!((answer.status, &answer.json()["error"]["message"]), (404, &json!(message)));
}
