/// Keys of `rank_pattern` and `alpha_pattern`: they mean what PEFT takes them for, and none can make reading an adapter hang.

import Adapters
import Checkpoints
import Primitives
import TestSupport
import Testing

@Suite struct ModulePatternTests {
    let folder = TemporaryFolder()
    static let paths = [
        "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.11.mlp.down_proj",
        "model.layers.2.mlp.up_proj", "bert.encoder.layer.3.attention.self.query", "lm_head", "a.b.", "x",
    ]

    /// The scale of each path in an adapter of rank 1 and lora_alpha 2, or why it is refused.
    private func scales(_ members: String, paths: [String] = paths) throws(Failure) -> [String: Float] {
        let path = folder.file("a")
        try PEFTAdapter(entries: paths.map { .init(map: $0, a: [1], b: [1], rank: 1, scale: 2, outputs: 1, inputs: 1) })
            .write(folder: path, maps: [])
        try writeFile(
            path + "/adapter_config.json",
            Array(#"{"peft_type":"LORA","task_type":"CAUSAL_LM","r":1,"lora_alpha":2,\#(members)}"#.utf8))
        let adapter = try PEFTAdapter(folder: path)
        return Dictionary(uniqueKeysWithValues: adapter.entries.map { ($0.map, $0.scale) })
    }

    private func text(_ key: String) -> String { JSONValue.string(key).compact }

    /// Expected: what Python's `re.match(rf"(.*\.)?({key})$", path)` finds, a digit for each path.
    @Test(arguments: [
        (#"q_proj"#, "11000000"),
        (#"model.layers.1.self_attn.q_proj"#, "01000000"),
        (#"layers.1"#, "00000000"),
        (#"proj"#, "00000000"),
        (#"self.attn.q_proj"#, "11000000"),
        (#".*q_proj"#, "11000000"),
        (#"^model.layers.1.self_attn.q_proj"#, "01000000"),
        (#"^layers.1.self_attn.q_proj"#, "00000000"),
        (#"model$"#, "00000000"),
        (#"lm_head$"#, "00000100"),
        (#"$"#, "00000010"),
        (#"layers\.\d+\.mlp\.down_proj"#, "00100000"),
        (#"layers\.[0-9]\.mlp\..*"#, "00010000"),
        (#"layers.(0|1|11)\.(?:self_attn|mlp)\.[a-z_]+"#, "11100000"),
        (#"layers\.1+\..*proj"#, "01100000"),
        (#"layers\.1?1\..*proj"#, "01100000"),
        (#".*\.[^.]+_proj"#, "11110000"),
        (#"[qk]_proj|up_proj"#, "11010000"),
        (#"(q|up)_proj|lm_.*"#, "11010100"),
        (#"\w+"#, "11111101"),
        (#"(\w+\.?)+"#, "11111111"),
        (#"(\w+\.?)+!"#, "00000000"),
        (#"(\w*)*\."#, "00000010"),
        (#"()*x"#, "00000001"),
        (#"(a*|b)*\.b\."#, "00000010"),
        (#"[]x]"#, "00000001"),
        (#"[\d\.]+.self_attn.q_proj"#, "11000000"),
        (#"[-q]_proj"#, "11000000"),
        (#".*?down_proj"#, "00100000"),
        (#""#, "00000010"),
        (#"x|"#, "00000011"),
        (#"self_attn"#, "00000000"),
        (#"(^model|encoder).*(query|q_proj)$"#, "11001000"),
        (#"lm\_head"#, "00000100"),
    ])
    func aKeyMatchesTheModulesForWhichPEFTTakesIt(_ key: String, _ expected: String) throws {
        let scales = try scales(#""alpha_pattern":{\#(text(key)):8}"#)
        #expect(Self.paths.map { scales[$0] == 8 ? "1" : "0" }.joined() == expected)
    }

    @Test func theFirstKeyThatMatchesCounts() throws {
        let scales = try scales(#""alpha_pattern":{"x":1,"0.self_attn.q_proj":4,"[a-z_]+":8,"lm_head":16}"#)
        #expect(Self.paths.map { scales[$0] } == [4, 8, 8, 8, 8, 8, 2, 1])
    }

    @Test(arguments: [
        ("(a", "a parenthesis is not closed"), ("a)", "closed that was not opened"), ("a{2}", "{ is not supported"),
        ("(?=a)", "begins with (?"), ("(?i)a", "begins with (?"), ("[a", "a bracket is not closed"), ("a**", "* follows *"),
        ("*a", "nothing that * could repeat"), ("^*", "nothing that * could repeat"), (#"a\"#, "ends with a backslash"),
        (#"\b"#, #"\b is not supported"#), (#"(a)\1"#, #"\1 is not supported"#), ("[z-a]", "runs backwards"),
        ("a]", "] is not supported"),
        (String(repeating: "a", count: 1025), "1025 bytes long"),
        (String(repeating: "(", count: 33) + String(repeating: ")", count: 33), "more than 32 groups"),
    ])
    func whatIsNotReadIsRefusedByTheKey(_ key: String, _ part: String) throws {
        for pattern in ["rank_pattern", "alpha_pattern"] {
            let failure = #expect(throws: Failure.self) { try scales(#""\#(pattern)":{\#(text(key)):8}"#) }
            #expect(failure?.status == .badData)
            #expect(failure?.message.contains("the key \(key.prefix(80)) of \(pattern) cannot be read: ") == true)
            #expect(failure?.message.contains(part) == true, "\(failure?.message ?? "")")
        }
    }

    /// An engine that goes back and tries again takes longer than anybody waits for.
    @Test(.timeLimit(.minutes(1)), arguments: [#"(\w+\.?)+!"#, #"((a*)*)*!"#, #"(a|a|aa)+!"#, #"(.*)*(.*)*(.*)*!"#])
    func noKeyMakesItHang(_ key: String) throws {
        let path = String(repeating: "a", count: 500)
        let start = ContinuousClock.now
        #expect(try scales(#""alpha_pattern":{\#(text(key)):8}"#, paths: [path])[path] == 2)
        #expect(ContinuousClock.now - start < .seconds(5))
    }

    @Test func tooManyKeysForTooManyMapsAreRefused() throws {
        let paths = (0..<1000).map { "\($0)." + String(repeating: "a", count: 100) }
        let keys = (0..<200).map { "\"" + String(repeating: "a?", count: 200) + "\($0)\":8" }
        #expect(try scales(#""alpha_pattern":{\#(keys[0])}"#, paths: paths).values.allSatisfy { $0 == 2 })
        let failure = #expect(throws: Failure.self) {
            try scales(#""rank_pattern":{\#(keys.joined(separator: ","))}"#, paths: paths)
        }
        #expect(failure?.message.contains("200 keys for 1000 maps") == true, "\(failure?.message ?? "")")
    }

    @Test func anAlphaBeyondSinglePrecisionIsRefused() throws {
        let failure = #expect(throws: Failure.self) { try scales(#""alpha_pattern":{"x":1e300}"#) }
        #expect(failure?.message.contains("x has the lora_alpha 1e+300") == true)
    }
}
