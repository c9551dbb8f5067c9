using System.Globalization;
using System.Text.Json;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Tokenizer;

/// <summary>
/// The settings in the files next to a tokenizer.model: tokenizer_config.json, and added_tokens.json of older checkpoints.
/// </summary>
/// <param name="Begins">Whether the beginning token is added to a text.</param>
/// <param name="Ends">Whether the end token is added to a text.</param>
/// <param name="IsLegacy">Whether a space is put before each part between added tokens, not only before the whole text.</param>
/// <param name="AddedTokens">Tokens, in addition to the control pieces, that are found in a text before anything else.</param>
internal sealed record SentencePieceConfig(bool Begins, bool Ends, bool IsLegacy, IReadOnlyList<AddedToken> AddedTokens)
{
    /// <summary>Reads the files; each is optional.</summary>
    /// <param name="directory">The directory of the tokenizer.model.</param>
    /// <param name="model">The tokenizer.model.</param>
    /// <exception cref="CheckpointException">A file is damaged, or gives an id or a text to another token than the model.</exception>
    /// <exception cref="UnsupportedModelException">An added token is of a kind that is not implemented.</exception>
    public static SentencePieceConfig Read(string directory, SentencePieceModelFile model)
    {
        Dictionary<int, AddedToken> added = [];
        string older = Path.Combine(directory, "added_tokens.json");
        if (File.Exists(older))
        {
            using JsonDocument document = JsonFile.Open(older);
            foreach (JsonProperty token in document.RootElement.EnumerateObject())
            {
                Add(new AddedToken(document.RootElement.RequireInt32(token.Name, older), token.Name, IsSpecial: false), older);
            }
        }

        string path = Path.Combine(directory, "tokenizer_config.json");
        if (!File.Exists(path))
        {
            return new SentencePieceConfig(true, false, true, [.. added.Values]);
        }

        using JsonDocument config = JsonFile.Open(path);
        JsonElement root = config.RootElement;
        if (root.Find("added_tokens_decoder") is not null)
        {
            foreach (JsonProperty token in root.Require("added_tokens_decoder", JsonValueKind.Object, path).EnumerateObject())
            {
                int id = int.TryParse(token.Name, NumberStyles.None, CultureInfo.InvariantCulture, out int number)
                    ? number
                    : throw new CheckpointException($"expected ids in 'added_tokens_decoder', but got '{token.Name}'.", path);
                Add(TokenizerFile.ReadAddedToken(token.Value, id, path) with { IsNormalized = false }, path);
            }
        }

        return new SentencePieceConfig(
            root.FindBoolean("add_bos_token", path) ?? true,
            root.FindBoolean("add_eos_token", path) ?? false,
            root.FindBoolean("legacy", path) ?? true,
            [.. added.Values]);

        // If both files have a token, the later one has more information.
        void Add(AddedToken token, string file)
        {
            bool fits = model.Vocabulary.TryGetValue(token.Content, out int known)
                ? known == token.Id
                : token.Id >= model.Vocabulary.Count
                    && added.Values.All(other => (other.Id == token.Id) == (other.Content == token.Content));
            if (!fits)
            {
                throw new CheckpointException($"expected one token per id, but {token.Id} is '{token.Content}' and another.", file);
            }

            if (model.Controls.All(control => control.Id != token.Id))
            {
                added[token.Id] = token;
            }
        }
    }
}
