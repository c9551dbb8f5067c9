using System.Text.Json;
using Mustafar.Models.Chat.Jinja;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Chat;

/// <summary>The variables <c>bos_token</c>, <c>eos_token</c> and so on for a chat template, from the files of the tokenizer.</summary>
internal static class SpecialTokenVariables
{
    private const string Additional = "additional_special_tokens";

    private static readonly string[] s_names =
        ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

    // Defaults of the tokenizer classes of transformers, if no file has them.
    private static readonly Dictionary<string, (string Name, string Token)[]> s_defaults = new()
    {
        ["LlamaTokenizer"] = [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
        ["Qwen2Tokenizer"] = [("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")],
    };

    /// <summary>Reads them: those of tokenizer_config.json, then of special_tokens_map.json, then of the tokenizer's class.</summary>
    /// <exception cref="CheckpointException">A file is damaged.</exception>
    public static Dictionary<string, object?> Read(string directory)
    {
        Dictionary<string, object?> variables = [];
        string tokenizerClass = "";
        foreach (string name in (string[])["tokenizer_config.json", "special_tokens_map.json"])
        {
            string path = Path.Combine(directory, name);
            if (!Path.Exists(path))
            {
                continue;
            }

            using JsonDocument document = JsonFile.Open(path);
            JsonElement root = document.RootElement;
            tokenizerClass = root.FindString("tokenizer_class", path) ?? tokenizerClass;
            foreach (string key in s_names)
            {
                if (root.Find(key) is JsonElement token)
                {
                    variables.TryAdd(key, ContentOf(token, key, path));
                }
            }

            if (root.Find(Additional) is { ValueKind: JsonValueKind.Array } list)
            {
                variables.TryAdd(Additional, new JinjaList([.. list.EnumerateArray().Select(token => (object?)ContentOf(token, Additional, path))]));
            }
        }

        tokenizerClass = tokenizerClass.EndsWith("Fast", StringComparison.Ordinal) ? tokenizerClass[..^"Fast".Length] : tokenizerClass;
        foreach ((string key, string token) in s_defaults.GetValueOrDefault(tokenizerClass, []))
        {
            variables.TryAdd(key, token);
        }

        return variables;
    }

    // A string, or an object that describes the token.
    private static string ContentOf(JsonElement token, string key, string path) =>
        token.ValueKind == JsonValueKind.String ? token.GetString()!
        : token.FindString("content", path)
            ?? throw new CheckpointException($"expected a text, or an object with its 'content', as '{key}', but got {token.Quote()}.", path);
}
