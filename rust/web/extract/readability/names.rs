//! The elements that the algorithm knows, and what kinds of them it tells apart.

macro_rules! names {
    ($($variant:ident = $text:literal),+ $(,)?) => {
        /// An element's name, whatever its namespace.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Name {
            /// Of no element that matters, or of no element at all.
            Other,
            $(#[allow(missing_docs)] $variant,)+
        }

        impl Name {
            /// The name of an element as the tree builder gives it.
            pub fn of(local: &str) -> Self {
                match local {
                    $($text => Self::$variant,)+
                    _ => Self::Other,
                }
            }
        }
    };
}

names! {
    A = "a", Abbr = "abbr", Address = "address", Article = "article", Aside = "aside",
    Audio = "audio", B = "b", Bdo = "bdo", Blockquote = "blockquote", Body = "body", Br = "br",
    Button = "button", Caption = "caption", Cite = "cite", Code = "code", Col = "col",
    Colgroup = "colgroup", Data = "data", Datalist = "datalist", Dd = "dd", Del = "del",
    Dfn = "dfn", Dialog = "dialog", Div = "div", Dl = "dl", Dt = "dt", Em = "em",
    Embed = "embed", Fieldset = "fieldset", Figure = "figure", Font = "font", Footer = "footer",
    Form = "form", H1 = "h1", H2 = "h2", H3 = "h3", H4 = "h4", H5 = "h5", H6 = "h6",
    Head = "head", Header = "header", Hr = "hr", Html = "html", I = "i", Iframe = "iframe",
    Img = "img", Input = "input", Ins = "ins", Kbd = "kbd", Label = "label", Li = "li",
    Link = "link", Mark = "mark", Math = "math", Meta = "meta", Meter = "meter",
    Noscript = "noscript", Object = "object", Ol = "ol", Output = "output", P = "p",
    Picture = "picture", Pre = "pre", Progress = "progress", Q = "q", Ruby = "ruby",
    Samp = "samp", Script = "script", Section = "section", Select = "select", Small = "small",
    Span = "span", Strong = "strong", Style = "style", Sub = "sub", Sup = "sup", Svg = "svg",
    Table = "table", Tbody = "tbody", Td = "td", Textarea = "textarea", Tfoot = "tfoot",
    Th = "th", Thead = "thead", Time = "time", Title = "title", Tr = "tr", Ul = "ul",
    Var = "var", Wbr = "wbr",
}

impl Name {
    /// Stands within a line, whatever it holds.
    pub fn is_phrasing(self) -> bool {
        use Name::{
            Abbr, Audio, B, Bdo, Br, Button, Cite, Code, Data, Datalist, Dfn, Em, Embed, I, Img,
            Input, Kbd, Label, Mark, Math, Meter, Noscript, Object, Output, Progress, Q, Ruby,
            Samp, Script, Select, Small, Span, Strong, Sub, Sup, Textarea, Time, Var, Wbr,
        };
        matches!(
            self,
            Abbr | Audio
                | B
                | Bdo
                | Br
                | Button
                | Cite
                | Code
                | Data
                | Datalist
                | Dfn
                | Em
                | Embed
                | I
                | Img
                | Input
                | Kbd
                | Label
                | Mark
                | Math
                | Meter
                | Noscript
                | Object
                | Output
                | Progress
                | Q
                | Ruby
                | Samp
                | Script
                | Select
                | Small
                | Span
                | Strong
                | Sub
                | Sup
                | Textarea
                | Time
                | Var
                | Wbr
        )
    }

    /// Stands within a line if all that it holds does.
    pub fn is_phrasing_wrapper(self) -> bool {
        matches!(self, Self::A | Self::Del | Self::Ins)
    }

    pub fn is_heading(self) -> bool {
        matches!(
            self,
            Self::H1 | Self::H2 | Self::H3 | Self::H4 | Self::H5 | Self::H6
        )
    }

    /// Makes a `div` around it more than a paragraph.
    pub fn is_block(self) -> bool {
        matches!(
            self,
            Self::Blockquote
                | Self::Dl
                | Self::Div
                | Self::Img
                | Self::Ol
                | Self::P
                | Self::Pre
                | Self::Table
                | Self::Ul
        )
    }

    /// Gives points to what is around it.
    pub fn is_scored(self) -> bool {
        self.is_heading() && self != Self::H1
            || matches!(self, Self::Section | Self::P | Self::Td | Self::Pre)
    }

    /// Goes if it holds nothing.
    pub fn needs_content(self) -> bool {
        self.is_heading() || matches!(self, Self::Div | Self::Section | Self::Header)
    }

    /// Is no `div` in an article, while anything else beside the main element becomes one.
    pub fn stays_in_article(self) -> bool {
        matches!(
            self,
            Self::Article | Self::Section | Self::P | Self::Ol | Self::Ul
        )
    }

    /// Points for being what it is.
    pub fn score(self) -> f32 {
        match self {
            Self::Div => 5.0,
            Self::Pre | Self::Td | Self::Blockquote => 3.0,
            Self::Address
            | Self::Ol
            | Self::Ul
            | Self::Dl
            | Self::Dd
            | Self::Dt
            | Self::Li
            | Self::Form => -3.0,
            Self::Th => -5.0,
            _ if self.is_heading() => -5.0,
            _ => 0.0,
        }
    }

    pub fn is_embed(self) -> bool {
        matches!(self, Self::Object | Self::Embed | Self::Iframe)
    }

    /// Is no part of an article, embedded videos apart.
    pub fn is_junk(self) -> bool {
        self.is_embed()
            || matches!(
                self,
                Self::Footer
                    | Self::Link
                    | Self::Aside
                    | Self::Input
                    | Self::Textarea
                    | Self::Select
                    | Self::Button
            )
    }

    /// Holds text that is read.
    pub fn is_textish(self) -> bool {
        self.is_block() || matches!(self, Self::Span | Self::Li | Self::Td)
    }

    /// Stands on lines of its own.
    pub fn breaks_lines(self) -> bool {
        self.is_heading()
            || matches!(
                self,
                Self::Article
                    | Self::Blockquote
                    | Self::Section
                    | Self::Div
                    | Self::P
                    | Self::Pre
                    | Self::Ul
                    | Self::Ol
                    | Self::Dl
                    | Self::Table
            )
    }
}
