/// A base model with a tokenizer that fits it, and word problems to train on: small enough for a round in a blink.

import FoundationEssentials
import Primitives

public enum TinyBase {
    /// Copies a golden checkpoint and puts a tokenizer of single bytes beside it.
    public static func write(_ golden: String = "llama-gqa", to folder: String) throws {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        for name in ["config.json", "generation_config.json", "model.safetensors"] {
            let source = Golden.path("models/\(golden)/\(name)")
            if FileManager.default.fileExists(atPath: source) {
                try FileManager.default.copyItem(atPath: source, toPath: folder + "/" + name)
            }
        }
        try Data(tokenizer.utf8).write(to: URL(filePath: folder + "/tokenizer.json"))
        try Data(#"{"eos_token": "<end>"}"#.utf8).write(to: URL(filePath: folder + "/tokenizer_config.json"))
    }

    /// Byte-level, no merges: token = byte, 256 is the end.
    public static let tokenizer: String = {
        // GPT-2's alphabet: printable bytes stand for themselves, the others for U+0100 and on.
        var vocabulary: [JSONValue.Member] = []
        var next: UInt32 = 256
        for byte in UInt32(0)..<256 {
            let isPrintable = (33...126).contains(byte) || (161...172).contains(byte) || (174...255).contains(byte)
            let scalar = isPrintable ? Unicode.Scalar(byte) : Unicode.Scalar(next)
            if !isPrintable { next += 1 }
            vocabulary.append(.init(String(scalar.map(Character.init) ?? " "), .integer(Int(byte))))
        }
        vocabulary.append(.init("<end>", .integer(256)))
        let byteLevel = JSONValue.object([
            .init("type", .string("ByteLevel")), .init("add_prefix_space", .boolean(false)),
            .init("trim_offsets", .boolean(true)),
            .init("use_regex", .boolean(true)),
        ])
        let added = JSONValue.object([
            .init("id", .integer(256)), .init("content", .string("<end>")), .init("single_word", .boolean(false)),
            .init("lstrip", .boolean(false)), .init("rstrip", .boolean(false)), .init("normalized", .boolean(false)),
            .init("special", .boolean(true)),
        ])
        return JSONValue.object([
            .init("version", .string("1.0")), .init("truncation", .null), .init("padding", .null),
            .init("added_tokens", .array([added])), .init("normalizer", .null), .init("pre_tokenizer", byteLevel),
            .init("post_processor", .null), .init("decoder", byteLevel),
            .init(
                "model",
                .object([
                    .init("type", .string("BPE")), .init("dropout", .null), .init("unk_token", .null),
                    .init("continuing_subword_prefix", .null), .init("end_of_word_suffix", .null),
                    .init("fuse_unk", .boolean(false)),
                    .init("byte_fallback", .boolean(false)), .init("vocab", .object(vocabulary)), .init("merges", .array([])),
                ])),
        ]).compact
    }()

    /// Sums, one a line.
    public static func records(_ count: Int, seed: UInt64 = 5) -> String {
        var generator = SeededGenerator(seed: seed, purpose: "sums")
        return (0..<count).map { _ in
            let a = generator.next() % 50
            let b = generator.next() % 50
            return #"{"prompt": "\#(a)+\#(b)=", "completion": "\#(a + b)"}"# + "\n"
        }.joined()
    }
}
