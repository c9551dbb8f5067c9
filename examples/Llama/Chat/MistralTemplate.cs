using Mustafar.Examples.Llama.Tokenizer;

namespace Mustafar.Examples.Llama.Chat;

/// <summary>The chats of Mistral's instruction models.</summary>
/// <remarks>
/// What the system says goes in front of the user's first turn. Version 0.3 puts it in front of the latest, which would mean to write
/// the chat anew at each turn.
/// </remarks>
/// <param name="beforeUser">Markup in front of what a user says; the versions differ in spaces.</param>
/// <param name="afterUser">Markup behind it.</param>
/// <param name="beforeReply">Markup in front of an earlier reply that is read again.</param>
/// <param name="afterReply">Markup behind the token that ends a reply.</param>
public sealed class MistralTemplate(
    string beforeUser = "[INST] ", string afterUser = " [/INST]", string beforeReply = "", string afterReply = "") : ChatTemplate
{
    /// <summary>The template's name.</summary>
    internal const string FamilyName = "mistral";

    /// <inheritdoc/>
    public override string Name => FamilyName;

    /// <inheritdoc/>
    public override string EndOfReply => "</s>";

    private protected override string AfterReply => afterReply;

    private protected override IReadOnlyList<string> Tokens => ["<s>", "</s>"];

    private protected override void Write(List<TextPart> parts, IReadOnlyList<ChatTurn> turns, int from)
    {
        string? system = turns[0].Speaker == ChatSpeaker.System ? turns[0].Text : null;
        int first = system is null ? 0 : 1;
        for (int i = Math.Max(from, first); i < turns.Count; i++)
        {
            ChatSpeaker expected = (i - first) % 2 == 0 ? ChatSpeaker.User : ChatSpeaker.Assistant;
            if (turns[i].Speaker != expected)
            {
                throw new ArgumentException(
                    $"Expected turns of user and assistant by turns, but turn {i} is the {turns[i].Speaker}'s.", nameof(turns));
            }
        }

        if (from == 0)
        {
            parts.Add(new TextPart("<s>", IsMarkup: true));
        }

        for (int i = Math.Max(from, first); i < turns.Count; i++)
        {
            bool isUser = turns[i].Speaker == ChatSpeaker.User;
            parts.Add(new TextPart(isUser ? beforeUser : beforeReply, IsMarkup: true));
            parts.Add(new TextPart(i == first && system is not null ? $"{system}\n\n{turns[i].Text}" : turns[i].Text, IsMarkup: false));
            parts.Add(new TextPart(isUser ? afterUser : EndOfReply + AfterReply, IsMarkup: true));
        }
    }
}
