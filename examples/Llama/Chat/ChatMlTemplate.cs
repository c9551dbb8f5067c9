using Mustafar.Examples.Llama.Tokenizer;

namespace Mustafar.Examples.Llama.Chat;

/// <summary>ChatML, the chats of Qwen.</summary>
/// <remarks>Qwen 3 leaves the reasoning out of replies that it reads again; a chat over one cache keeps what it has said.</remarks>
/// <param name="defaultSystem">What the system says in a chat where it says nothing; nothing if null.</param>
/// <param name="beginsText">Whether a chat begins with the token that begins a text.</param>
public sealed class ChatMlTemplate(string? defaultSystem = null, bool beginsText = false) : ChatTemplate
{
    private const string Begin = "<|im_start|>";

    /// <summary>The template's name.</summary>
    internal const string FamilyName = "chatml";

    /// <inheritdoc/>
    public override string Name => FamilyName;

    /// <inheritdoc/>
    public override string EndOfReply => "<|im_end|>";

    private protected override bool BeginsText => beginsText;

    private protected override string AfterReply => "\n";

    private protected override IReadOnlyList<string> Tokens => [Begin, EndOfReply];

    private protected override void Write(List<TextPart> parts, IReadOnlyList<ChatTurn> turns, int from)
    {
        if (from == 0 && defaultSystem is not null && turns[0].Speaker != ChatSpeaker.System)
        {
            Write(parts, new ChatTurn(ChatSpeaker.System, defaultSystem));
        }

        foreach (ChatTurn turn in turns.Skip(from))
        {
            Write(parts, turn);
        }

        parts.Add(new TextPart($"{Begin}{ChatTemplates.NameOf(ChatSpeaker.Assistant)}\n", IsMarkup: true));
    }

    private void Write(List<TextPart> parts, ChatTurn turn)
    {
        parts.Add(new TextPart($"{Begin}{ChatTemplates.NameOf(turn.Speaker)}\n", IsMarkup: true));
        parts.Add(new TextPart(turn.Text, IsMarkup: false));
        parts.Add(new TextPart(EndOfReply + AfterReply, IsMarkup: true));
    }
}
