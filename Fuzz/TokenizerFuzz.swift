/// Fuzz target `tokenizer`: `tokenizer.json`, and text through whatever it makes.
///
/// The input is a tokenizer file, then a zero byte, then a text. What is accepted must encode the text to tokens of its
/// vocabulary and decode them without an error.

import Primitives
import Tokenizers

extension FuzzTarget {
    static let tokenizer = FuzzTarget(name: "tokenizer", seeds: TokenizerFuzz.seeds, run: TokenizerFuzz.run)
}

private enum TokenizerFuzz {
    @Sendable static func seeds() -> [[UInt8]] {
        let byteLevel = #"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}"#
        let spelling = #"{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":false}"#
        func file(
            added: String = "", normalizer: String = "null", pre: String = "null", post: String = "null",
            decoder: String = "null",
            model: String
        ) -> String {
            #"{"version":"1.0","added_tokens":[\#(added)],"normalizer":\#(normalizer),"pre_tokenizer":\#(pre),"post_processor":\#(post),"decoder":\#(decoder),"model":{\#(model)}}"#
        }
        func token(_ id: Int, _ content: String, special: Bool = true, more: String = "") -> String {
            #"{"id":\#(id),"content":"\#(content)","special":\#(special)\#(more)}"#
        }
        func split(_ pattern: String) -> String {
            #"{"type":"Split","pattern":{"Regex":\#(JSONValue.string(pattern).compact)},"behavior":"Isolated","invert":false}"#
        }
        let llama3 =
            #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
        let qwen2 = llama3.replacing(#"\p{N}{1,3}"#, with: #"\p{N}"#)
        let template =
            #"{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],"special_tokens":{"<s>":{"id":"<s>","ids":[1],"tokens":["<s>"]}}}"#
        let wordPieces =
            ###""type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":9,"vocab":{"[PAD]":0,"[UNK]":1,"[CLS]":2,"[SEP]":3,"a":4,"##b":5,"ba":6,"é":7,"xy":8,"##x":9}"###
        let files = [
            file(
                added: token(4, "<e>"), pre: byteLevel, decoder: byteLevel,
                model: #""type":"BPE","vocab":{"a":0,"b":1,"ab":2,"Ġ":3,"<e>":4},"merges":["a b"]"#),
            file(
                added: token(
                    5, "<e>", special: false, more: #","single_word":true,"lstrip":true,"rstrip":true,"normalized":true"#),
                normalizer: #"{"type":"NFC"}"#, pre: #"{"type":"Sequence","pretokenizers":[\#(split(qwen2)),\#(spelling)]}"#,
                decoder: byteLevel, model: #""byte_fallback":false,"vocab":{"x":0,"y":1,"xy":2},"merges":[["x","y"]]"#),
            file(
                pre: #"{"type":"Sequence","pretokenizers":[\#(split(llama3)),\#(spelling)]}"#,
                post: #"{"type":"Sequence","processors":[{"type":"ByteLevel"},\#(template)]}"#, decoder: byteLevel,
                model: #""type":"BPE","ignore_merges":true,"vocab":{"a":0,"<s>":1,"Ġa":2,"Ġ":3},"merges":["Ġ a"]"#),
            file(
                pre: #"{"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},\#(byteLevel)]}"#,
                decoder: byteLevel, model: #""type":"BPE","vocab":{"1":0,"2":1,"a":2},"merges":[]"#),
            // Llama 2's.
            file(
                added: token(0, "<unk>") + "," + token(1, "<s>"),
                normalizer:
                    #"{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]}"#,
                post: template,
                decoder:
                    #"{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]}"#,
                model:
                    #""type":"BPE","unk_token":"<unk>","fuse_unk":true,"byte_fallback":true,"vocab":{"<unk>":0,"<s>":1,"▁":2,"a":3,"▁a":4,"<0x62>":5},"merges":["▁ a"]"#
            ),
            file(
                normalizer: #"{"type":"Sequence","normalizers":[{"type":"NFD"},{"type":"Lowercase"}]}"#,
                pre: #"{"type":"Metaspace","replacement":"▁","prepend_scheme":"first","split":true}"#,
                decoder: #"{"type":"Metaspace","replacement":"▁","add_prefix_space":true}"#,
                model: #""type":"BPE","unk_token":"u","vocab":{"u":0,"▁":1,"a":2,"▁a":3},"merges":[["▁","a"]]"#),
            // BERT's.
            file(
                added: (0..<4).map { token($0, ["[PAD]", "[UNK]", "[CLS]", "[SEP]"][$0]) }.joined(separator: ","),
                normalizer:
                    #"{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true}"#,
                pre: #"{"type":"BertPreTokenizer"}"#, post: #"{"type":"BertProcessing","sep":["[SEP]",3],"cls":["[CLS]",2]}"#,
                decoder: ###"{"type":"WordPiece","prefix":"##","cleanup":true}"###, model: wordPieces),
            file(
                normalizer: #"{"type":"BertNormalizer","lowercase":false,"strip_accents":false}"#,
                pre: #"{"type":"BertPreTokenizer"}"#, post: #"{"type":"RobertaProcessing","sep":["[SEP]",3],"cls":["[CLS]",2]}"#,
                model: wordPieces),
        ]
        return files.map { Array($0.utf8) + [0] + Array("ab ba <e> xyx É 漢\u{301} 12".utf8) }
    }

    @Sendable static func run(_ input: [UInt8]) -> String? {
        let parts = input.split(separator: 0, maxSplits: 1, omittingEmptySubsequences: false)
        let text = String(decoding: parts.count > 1 ? Array(parts[1]) : [], as: UTF8.self)
        do throws(Failure) {
            let tokenizer = try Tokenizer(bytes: Array(parts[0]), path: "fuzz")
            let tokens = tokenizer.encode(text, addSpecialTokens: true)
            _ = tokenizer.decode(tokens, skipSpecialTokens: false)
        } catch {
            precondition(!error.message.isEmpty)
            return error.message
        }
        return nil
    }
}
